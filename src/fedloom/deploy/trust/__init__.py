"""Who is who: certificates, keys, invitations, sessions."""
