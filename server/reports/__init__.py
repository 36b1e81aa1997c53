"""Reports: figures that are kept, and the files that are drawn from them."""
