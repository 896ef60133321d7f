/**
 * One entry of "providers": who signs tokens, where the keys are, and which tokens are good for signing in.
 *
 * Fills in what a preset knows, so that whoever reads a configuration sees plain settings. What providers must agree on with
 * the rest of the file is in `config-rules.ts`.
 */
import { z } from 'zod';
import { jsonPointer, milliseconds, name } from './config-values.ts';
import {
  baseUrl,
  type KnownProvider,
  type OwnSetting,
  type Preset,
  PRESET_NAMES,
  type PresetName,
  PresetProblem,
  PRESETS,
  SHARED_KEY_HOSTS,
} from './presets.ts';

/** Algorithms a provider may allow: asymmetric ones alone, so no published key can ever be an HMAC secret (attack C2). */
export const ALGORITHMS = [
  'RS256',
  'RS384',
  'RS512',
  'PS256',
  'PS384',
  'PS512',
  'ES256',
  'ES384',
  'ES512',
  'EdDSA',
] as const;

/** What a provider may sign with where neither its settings nor its preset say. */
export const DEFAULT_ALGORITHMS = ['RS256', 'ES256', 'EdDSA'] as const;

// What goes into a URL as it is.
const urlSafe = z
  .string()
  .max(200)
  .regex(/^[A-Za-z0-9][A-Za-z0-9._~:%-]*$/, 'must be of letters, digits and . _ ~ : % -');

const oneOrMore = z.union([
  z
    .string()
    .min(1)
    .transform((one) => [one]),
  z.array(z.string().min(1)).min(1),
]);

const ofPresets = {
  domain: z
    .string()
    .refine(
      (text) => baseUrl(text) !== undefined,
      'must be a host name, for instance "id.example.com"',
    )
    .optional()
    .describe(`With a preset: the provider's host, as its console shows it. ${users('domain')}`),
  project: urlSafe.optional().describe(`With a preset: the project's id. ${users('project')}`),
  realm: urlSafe
    .optional()
    .describe(`With a preset: the realm, as it is in URLs. ${users('realm')}`),
  userPool: z
    .string()
    .regex(/^[a-z]{2,3}(-[a-z]+)+-\d_[A-Za-z0-9]+$/, 'must be like "eu-west-1_AbCdEfGhI"')
    .optional()
    .describe(
      `With a preset: the user pool's id, which begins with its region. ${users('userPool')}`,
    ),
  clients: oneOrMore
    .optional()
    .describe(`With a preset: ids of the applications that sign users in. ${users('clients')}`),
  tenant: urlSafe.optional().describe(`With a preset: the tenant's id. ${users('tenant')}`),
  hostedDomain: z
    .string()
    .min(1)
    .optional()
    .describe(
      `With a preset: let in accounts of this organization alone. ${users('hostedDomain')}`,
    ),
  tokens: z
    .enum(['access', 'id'])
    .optional()
    .describe(
      `With a preset: the kind of tokens to accept. Default: access tokens. ${users('tokens')}`,
    ),
};

const settings = z.strictObject({
  preset: z
    .enum(PRESET_NAMES)
    .optional()
    .describe('A provider known by name, which fills in all but its own settings and the roles.'),
  ...ofPresets,
  issuer: oneOrMore
    .optional()
    .describe('The exact "iss" of its tokens; several where it spells itself in several ways.'),
  jwksUri: z.url().optional().describe('Where its keys are published. https, or http on loopback.'),
  jwksFile: z.string().optional().describe('A JWKS on disk instead, for air-gapped use.'),
  audience: oneOrMore.optional().describe('One of these must be in "aud".'),
  anyAudience: z
    .boolean()
    .optional()
    .describe(
      'Accept tokens meant for any audience. Only for an issuer that serves this application alone.',
    ),
  authorizedParties: oneOrMore
    .optional()
    .describe(
      'Who may have asked for the token: "azp", "client_id" or "appid" must be one of these.',
    ),
  algorithms: z
    .array(z.enum(ALGORITHMS))
    .min(1)
    .optional()
    .describe(`Default: the preset's, else ${DEFAULT_ALGORITHMS.join(', ')}.`),
  typ: oneOrMore
    .optional()
    .describe('The header must have one of these as "typ", for instance "at+jwt".'),
  claims: z
    .record(jsonPointer, z.array(z.union([z.string(), z.number(), z.boolean(), z.null()])).min(1))
    .optional()
    .describe(
      'Claims, by JSON Pointer, that must be or hold one of these values; null is for a claim that is not there.',
    ),
  roles: z.array(name).min(1).describe('PostgreSQL roles that its users may ask for.'),
  roleClaim: jsonPointer
    .optional()
    .describe(
      'JSON Pointer to a claim (string or array of strings) that must name the role as well.',
    ),
  requiredClaims: z
    .array(z.string().min(1))
    .optional()
    .describe('Claims that must be present beside exp, iss, sub and aud.'),
  clockToleranceMs: milliseconds.max(300_000).default(30_000),
  maxTokenAgeMs: milliseconds
    .min(1)
    .optional()
    .describe('Refuse tokens whose "iat" is older than this.'),
});

type Settings = z.output<typeof settings>;

/** A provider as the proxy reads it: with or without a preset, the same settings. */
export interface Provider {
  readonly preset: PresetName | undefined;
  /** The exact `iss` of its tokens; the first, where it has several. */
  readonly issuer: string;
  /** The others, each with its own keys. */
  readonly otherIssuers: readonly {
    readonly issuer: string;
    readonly jwksUri: string | undefined;
  }[];
  readonly jwksUri: string | undefined;
  readonly jwksFile: string | undefined;
  readonly audience: readonly string[] | undefined;
  readonly anyAudience: boolean;
  readonly authorizedParties: readonly string[] | undefined;
  readonly algorithms: readonly (typeof ALGORITHMS)[number][];
  readonly typ: readonly string[] | undefined;
  readonly claims: Readonly<Record<string, readonly (string | number | boolean | null)[]>>;
  readonly roles: readonly string[];
  readonly roleClaim: string | undefined;
  readonly requiredClaims: readonly string[];
  readonly clockToleranceMs: number;
  readonly maxTokenAgeMs: number | undefined;
}

/** Each issuer of a provider as a provider of one issuer: so that the keys of one never verify a token of another. */
export function perIssuer(provider: Provider): readonly Provider[] {
  const { otherIssuers, ...first } = provider;
  return [first, ...otherIssuers.map((other) => ({ ...first, ...other }))].map((one) => ({
    ...one,
    otherIssuers: [],
  }));
}

type Report = (setting: keyof Settings, message: string) => void;

/** The schema of one provider. */
export const provider = settings.transform((given, context): Provider => {
  const report: Report = (setting, message) =>
    context.addIssue({ code: 'custom', path: [setting], message });
  const preset: Preset | undefined = given.preset === undefined ? undefined : PRESETS[given.preset];
  checkOwnSettings(given, preset, report);
  const known = preset && context.issues.length === 0 ? ask(preset, given, report) : undefined;
  const issuers = issuersOf(given, known);
  const [first, ...otherIssuers] = issuers;
  if (first === undefined && preset === undefined) {
    report('issuer', 'is missing: the exact "iss" of its tokens, or a preset');
  }
  const { audience, anyAudience } = audienceOf(given, known);
  // A preset that has something to complain about may have been about to fill it in.
  if ((known !== undefined || preset === undefined) && (audience === undefined) === !anyAudience) {
    report(
      'audience',
      'is missing: say which audience its tokens must have (or, knowing what it means, "anyAudience": true, never both)',
    );
  }
  if (preset?.sharedKeys || hasSharedKeys(issuers)) checkShared(given, preset, report);
  return {
    preset: given.preset,
    issuer: first?.issuer ?? '',
    otherIssuers,
    jwksUri: first?.jwksUri,
    jwksFile: given.jwksFile,
    audience,
    anyAudience,
    authorizedParties: given.authorizedParties ?? known?.authorizedParties,
    algorithms: given.algorithms ?? known?.algorithms ?? DEFAULT_ALGORITHMS,
    typ: given.typ ?? known?.typ,
    claims: { ...unaddressedRule(given, known), ...known?.claims, ...given.claims },
    roles: given.roles,
    roleClaim: given.roleClaim,
    requiredClaims: [
      ...new Set([...(known?.requiredClaims ?? []), ...(given.requiredClaims ?? [])]),
    ],
    clockToleranceMs: given.clockToleranceMs,
    maxTokenAgeMs: given.maxTokenAgeMs,
  };
});

/** Which presets a setting is for, for its description. */
function users(setting: OwnSetting): string {
  const names = Object.entries<Preset>(PRESETS)
    .filter(([, { needs, takes }]) => [...needs, ...takes].includes(setting))
    .map(([id]) => id);
  return `For ${names.join(', ')}.`;
}

function checkOwnSettings(given: Settings, preset: Preset | undefined, report: Report): void {
  for (const setting of preset?.needs ?? []) {
    if (given[setting] === undefined && !(setting === 'audience' && given.anyAudience === true)) {
      report(setting, `is missing: preset "${given.preset}" needs it`);
    }
  }
  for (const setting of Object.keys(ofPresets) as OwnSetting[]) {
    if (given[setting] === undefined) continue;
    if (preset === undefined) report(setting, 'is for presets, and there is no preset here');
    else if (![...preset.needs, ...preset.takes].includes(setting)) {
      report(setting, `is not a setting of preset "${given.preset}"`);
    }
  }
}

function ask(preset: Preset, given: Settings, report: Report): KnownProvider | undefined {
  try {
    return preset.know(given);
  } catch (error) {
    if (!(error instanceof PresetProblem)) throw error;
    report(error.setting, error.message);
    return undefined;
  }
}

type Source = Provider['otherIssuers'][number];

function issuersOf(given: Settings, known: KnownProvider | undefined): readonly Source[] {
  const place = (fallback: string | undefined) =>
    given.jwksUri ?? (given.jwksFile === undefined ? fallback : undefined);
  if (given.issuer !== undefined) {
    const jwksUri = place(known?.issuers[0].jwksUri);
    return given.issuer.map((issuer) => ({ issuer, jwksUri }));
  }
  return (known?.issuers ?? []).map(({ issuer, jwksUri }) => ({ issuer, jwksUri: place(jwksUri) }));
}

/** `audience` as configured or known. Where neither says, some presets do without. */
function audienceOf(
  given: Settings,
  known: KnownProvider | undefined,
): Pick<Provider, 'audience' | 'anyAudience'> {
  if (given.anyAudience === true) return { audience: given.audience, anyAudience: true };
  const audience = given.audience ?? known?.audience;
  const parties = given.authorizedParties ?? known?.authorizedParties;
  const anyAudience =
    audience === undefined &&
    (known?.unaddressed !== undefined || (known?.partiesSuffice === true && parties !== undefined));
  return { audience, anyAudience };
}

/** Where no audience is configured and the preset's tokens have none, one that has an audience is meant for somebody else. */
function unaddressedRule(given: Settings, known: KnownProvider | undefined): Provider['claims'] {
  const applies = given.audience === undefined && given.anyAudience !== true;
  return applies && known?.unaddressed !== undefined ? { '/aud': known.unaddressed } : {};
}

function hasSharedKeys(issuers: readonly Source[]): boolean {
  return issuers.some(
    ({ jwksUri }) => jwksUri !== undefined && SHARED_KEY_HOSTS.includes(new URL(jwksUri).hostname),
  );
}

/** Attack C19: the keys verify the tokens of everybody's projects, so only the audience tells ours from a stranger's. */
function checkShared(given: Settings, preset: Preset | undefined, report: Report): void {
  if (given.anyAudience === true) {
    report(
      'anyAudience',
      'cannot be: these keys sign the tokens of all customers of the provider, so a stranger could sign in',
    );
  }
  if (preset !== undefined && given.issuer !== undefined) {
    report('issuer', `follows from the other settings of preset "${given.preset}"`);
  }
}
