"""The benchmark: tlsproxy beside its peers, on one machine, on the same work (`make bench`).

README.md says how it measures. Nothing of tlsproxy imports this.
"""
