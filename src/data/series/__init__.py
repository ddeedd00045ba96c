"""Series: stamps cleaned and put on a regular grid once; windows taken by the batch from one tensor."""
