"""The launcher `ray` beyond its own file: a bridge process that talks to Ray, and agents on the cluster's nodes."""
