"""How this agent serves beside other model servers on the same machine, and how near it comes to what is possible."""
