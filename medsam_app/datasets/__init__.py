"""Find labelled cases in the usual layouts, and check and summarise them."""
