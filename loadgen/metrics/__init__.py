"""The metrics that servers keep of themselves: their names (`families`) and the loop that asks (`scrape`)."""
