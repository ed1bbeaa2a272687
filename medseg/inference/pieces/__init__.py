"""What label planes hold: pieces and holes, found, cleaned and measured as planes pass; and doubts about them."""
