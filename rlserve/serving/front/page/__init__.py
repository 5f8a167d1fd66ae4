"""The page that a server shows to browsers."""
