"""One engine to the layers above, wherever its ranks are: requests in, token events out."""
