"""Processes of this machine that work at the same time: started early, replaced where one dies, gone with their parent."""
