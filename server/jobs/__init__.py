"""Work that is done aside: what kinds there are, how it reaches a worker, and the worker itself."""
