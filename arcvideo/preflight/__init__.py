"""What a recipe needs before it runs, told from settings and index alone, and how wrong that was afterwards."""
