"""Text sources, tokenizers, token shards, packed windows and the batch loader."""
