"""Makes both worlds agree: campaigns and figures as platforms have them, and what we want of them."""
