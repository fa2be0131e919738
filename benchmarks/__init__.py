"""Speed: ratios against peers measured in the same run, one command each (`make bench-<name>`)."""
