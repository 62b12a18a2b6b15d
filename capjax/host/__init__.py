"""What the computer that runs the program does for it: files, downloads, waits, memory."""
