"""Media read in processes that may die, and the frames kept from it."""
