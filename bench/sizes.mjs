/**
 * How big things are in every measurement, so that all columns get the same. What the user may choose is not here.
 */

/** Clients of the busy measurements. */
export const CLIENTS = 16;
/** The most clients that any measurement with real backends has. */
export const CROWD = 1_000;
/** Statements a second that are offered to ten clients, a hundred and a thousand alike. */
export const OFFERED_PER_SECOND = 1_000;
/** Sessions that say nothing. */
export const SILENT = 5_000;
/** How long they may take to come to rest. */
export const REST_SECONDS = 15;
/** How long pools keep a session that nobody uses: short, so that one measurement leaves nothing to the next. */
export const IDLE_SECONDS = 5;
/** How long each column is warmed up with each kind of login before the first round. */
export const REHEARSAL_SECONDS = 6;
/** Bytes of a row in the two shapes of COPY. */
export const ROW_BYTES = { wide: 1_000, narrow: 100 };
