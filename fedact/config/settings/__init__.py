"""The fields of Config in groups, one file a group, as ``--help`` shows them."""
