"""What is typed becomes settings: words, groups and recipes, of a stage, a run of stages or a sweep."""
