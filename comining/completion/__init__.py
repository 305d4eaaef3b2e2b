"""From proposals for the missing boxes to a data set that has them."""
