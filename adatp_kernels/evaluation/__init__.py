"""What pruning costs in answers: methods against each other, on clips whose answers are known."""
