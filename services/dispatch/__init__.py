"""The desk of a district: members, matching, tasks and their deadlines."""
