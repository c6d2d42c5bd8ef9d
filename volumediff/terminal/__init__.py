"""What the program shows as it works: messages, results, progress, and a log file of them."""
