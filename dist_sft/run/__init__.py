"""What a run is made of, and one rank of it: below Ray, above the loop."""
