"""What is kept how long, archived and brought back; and what is erased everywhere."""
