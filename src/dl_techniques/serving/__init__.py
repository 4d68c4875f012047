"""One engine behind the terminal chat and the HTTP server, and both of these."""
