"""Numbers for people: the rows of a run, where they are sent, what a step costs."""
