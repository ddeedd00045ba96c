"""Tables: rows of numbers, categories and dates, and one target each."""
