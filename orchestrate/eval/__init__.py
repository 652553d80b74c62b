"""Quality of a model on given text: perplexity by named protocols, and token agreement."""
