"""What is to be done with a series: rules and what they may ask, jobs made by them, studies of two patients settled."""
