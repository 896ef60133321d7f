-- Lets the proxy mend slots by itself: pgjot.heal(), and the role that may do what it does.
--
-- Runs after portable.sql, in the same transaction and with its settings, where the configuration says "healSlots".
-- A slot is spoilt when its user has changed the password, settings or members of the role that the session is logged
-- in as; PostgreSQL lets everybody do that. Only CREATEROLE undoes it, so pgjot_healer has that and does nothing else:
-- nobody can log in as it or become it, and its one function may be called by the control connection alone.
-- Before PostgreSQL 16 CREATEROLE holds for every role that is no superuser; since then for the slots alone.

DO $healer$
DECLARE
  -- Since PostgreSQL 16 CREATEROLE without ADMIN OPTION on a role does nothing to it.
  needs_admin constant bool := current_setting('server_version_num')::int4 >= 160000;
  slot        name;
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'pgjot_healer') THEN
    CREATE ROLE pgjot_healer;
    RAISE INFO 'created role "pgjot_healer"';
  END IF;
  ALTER ROLE pgjot_healer NOLOGIN NOINHERIT CREATEROLE;
  IF needs_admin THEN
    FOR slot IN
      SELECT w.slot FROM pg_temp.wanted_slots() w JOIN pg_roles r ON r.rolname = w.slot
       WHERE NOT EXISTS (SELECT FROM pg_auth_members m
                          WHERE m.roleid = r.oid AND m.member = 'pgjot_healer'::regrole AND m.admin_option)
    LOOP
      EXECUTE format('GRANT %I TO pgjot_healer WITH ADMIN TRUE, INHERIT FALSE, SET FALSE', slot);
    END LOOP;
  END IF;
END
$healer$;

GRANT pgjot_owner, pgjot_healer TO CURRENT_USER;
SET LOCAL ROLE pgjot_owner;
GRANT USAGE, CREATE ON SCHEMA pgjot TO pgjot_healer;
GRANT SELECT ON pgjot.slot TO pgjot_healer;
SET LOCAL ROLE pgjot_healer;

-- Gives a slot its password and attributes back, as setup would, and takes all settings away that can be reset from
-- here. p_verifier is the SCRAM verifier of its password. Live sessions of the slot go on. Returns whether there is such a slot; one that may not log in is none: no
-- user can do that, but setup retires slots so, and an administrator may have meant it.
CREATE OR REPLACE FUNCTION pgjot.heal(p_slot name, p_verifier text) RETURNS bool
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  slot_oid oid;
  setting  record;
  stray    regrole;
BEGIN
  IF session_user <> 'pgjot_control' THEN
    RAISE EXCEPTION 'pgjot: permission denied, only the control connection may do this' USING ERRCODE = '42501';
  END IF;
  IF p_verifier IS NULL OR p_verifier !~ '^SCRAM-SHA-256[$]\d{4,7}:[A-Za-z0-9+/]+={0,2}[$][A-Za-z0-9+/]{43}=:[A-Za-z0-9+/]{43}=$' THEN
    RAISE EXCEPTION 'pgjot: not a SCRAM verifier' USING ERRCODE = '22023';
  END IF;
  SELECT r.oid INTO slot_oid
    FROM pgjot.slot t JOIN pg_roles r ON r.rolname = t.slot
   WHERE t.slot = p_slot AND r.rolcanlogin;
  IF NOT FOUND THEN
    RETURN false;
  END IF;

  BEGIN
    EXECUTE format('ALTER ROLE %I INHERIT CONNECTION LIMIT 1 PASSWORD %L VALID UNTIL ''infinity''', p_slot, p_verifier);
  EXCEPTION WHEN OTHERS THEN
    -- Raised anew: with the statement for its context the server's log, and whoever asked, would get the verifier.
    RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = SQLERRM;
  END;
  FOR setting IN
    SELECT coalesce(' IN DATABASE ' || quote_ident(d.datname), '') AS scope, split_part(c, '=', 1) AS name
      FROM pg_db_role_setting s
      LEFT JOIN pg_database d ON d.oid = s.setdatabase
     CROSS JOIN unnest(s.setconfig) c
     WHERE s.setrole = slot_oid
  LOOP
    BEGIN
      EXECUTE format('ALTER ROLE %I%s RESET %I', p_slot, setting.scope, setting.name);
    EXCEPTION WHEN insufficient_privilege THEN
      -- Not "role" and its like, inside a SECURITY DEFINER function. The slot itself can do it.
      NULL;
    END;
  END LOOP;
  IF current_setting('server_version_num')::int4 < 150000 THEN
    FOR stray IN
      SELECT m.member FROM pg_auth_members m
       WHERE m.roleid = slot_oid AND m.member <> 'pgjot_owner'::regrole
    LOOP
      EXECUTE format('REVOKE %I FROM %s', p_slot, stray);
    END LOOP;
    FOR stray IN
      SELECT m.roleid FROM pg_auth_members m
        JOIN pg_roles r ON r.oid = m.roleid AND r.rolname ~ '^pgjot_.+_\d+$'
       WHERE m.member = slot_oid
    LOOP
      EXECUTE format('REVOKE %s FROM %I', stray, p_slot);
    END LOOP;
    IF NOT EXISTS (SELECT FROM pg_auth_members m WHERE m.roleid = slot_oid AND m.member = 'pgjot_owner'::regrole) THEN
      EXECUTE format('GRANT %I TO pgjot_owner', p_slot);
    END IF;
  END IF;
  RETURN true;
END
$$;

REVOKE ALL ON FUNCTION pgjot.heal(name, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pgjot.heal(name, text) TO pgjot_control;

SET LOCAL ROLE pgjot_owner;
REVOKE CREATE ON SCHEMA pgjot FROM pgjot_healer;
SELECT set_config('role', current_setting('pgjot_install.admin'), true);
REVOKE pgjot_owner, pgjot_healer FROM CURRENT_USER;
