-- Ends every session of a role of pgjot's that began before the moment in the setting pgjot_end.before.

SET LOCAL search_path = pg_catalog, pg_temp;
DO $$ BEGIN PERFORM set_config('pgjot_end.admin', current_user, true); END $$;
GRANT pgjot_owner TO CURRENT_USER;

DO $sessions$
DECLARE
  ended int4;
BEGIN
  SET LOCAL ROLE pgjot_owner;
  PERFORM pg_stat_clear_snapshot();
  SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid)) INTO ended
    FROM pg_stat_get_activity(NULL) a
    JOIN pg_auth_members m ON m.roleid = a.usesysid AND m.member = 'pgjot_owner'::regrole
   WHERE a.backend_start < current_setting('pgjot_end.before')::timestamptz AND a.backend_type = 'client backend';
  RAISE INFO '%', ended;
  PERFORM set_config('role', current_setting('pgjot_end.admin'), true);
END
$sessions$;

REVOKE pgjot_owner FROM CURRENT_USER;
