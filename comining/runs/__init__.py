"""What a run leaves on disk, how it ends, and how it goes on."""
