"""Search, validation and statistics of labelled cases in the usual layouts."""
