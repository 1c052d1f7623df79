"""From documents to batches: corpus -> tokenizer -> shards -> loader."""
