"""analysis: pure functions over run directories. Nothing here touches a server or a clock."""
