"""PostgreSQL: the truth for entities. One module per aggregate; SQL lives here and nowhere else."""
