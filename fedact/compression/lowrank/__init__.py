"""Low-rank methods: HOSVD and its relatives, with the algebra they share."""
