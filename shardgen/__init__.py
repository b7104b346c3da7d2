"""What goes into a shard: raw faces in, tagged and checksummed WebDataset shards out."""
