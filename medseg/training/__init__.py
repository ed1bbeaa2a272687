"""A bundle's weights made from labelled cases (`train`), and its scores against references (`evaluate`)."""
