"""Models: the shared vision-language model and its families."""
