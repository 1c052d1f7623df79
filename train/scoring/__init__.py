"""Log-likelihoods of text under the weights of an engine, on any layout: documents, and downstream tasks."""
