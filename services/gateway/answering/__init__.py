"""From prompt ids to an answer: sequences, their replay on other workers, and what is noted of them."""
