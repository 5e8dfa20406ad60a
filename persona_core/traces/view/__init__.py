"""The client-side token view: the payload it draws, its scripts and styles, and the page that works offline."""
