"""A planned family becomes rows of a batch: its record and media are read, rendered and packed, ahead of the step."""
