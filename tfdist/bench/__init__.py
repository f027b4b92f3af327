"""`tfdist bench`: measures all-reduce, `model.fit` and this machine's limits beside other libraries, in the same run."""
