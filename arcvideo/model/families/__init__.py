"""What a family of models is, and which there are; each has a folder beside this one."""
