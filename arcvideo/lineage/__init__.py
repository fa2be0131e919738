"""What a stage is (its identity), what it proves when finished (its manifest), and where its parent lies."""
