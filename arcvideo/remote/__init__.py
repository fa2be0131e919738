"""Shards that lie elsewhere: read by ranges, streamed once for their index, copied whole if need be."""
