/** What TeX's commands look like in Unicode. Read by math.js. */

const pairs = (text) => new Map(text.match(/\S+/g).map((pair) => pair.split("=")));

/** Names that stand for a letter. */
export const LETTERS = pairs(`
  alpha=α beta=β gamma=γ delta=δ epsilon=ϵ varepsilon=ε zeta=ζ eta=η theta=θ vartheta=ϑ iota=ι kappa=κ lambda=λ mu=μ nu=ν xi=ξ
  pi=π varpi=ϖ rho=ρ varrho=ϱ sigma=σ varsigma=ς tau=τ upsilon=υ phi=ϕ varphi=φ chi=χ psi=ψ omega=ω Gamma=Γ Delta=Δ Theta=Θ
  Lambda=Λ Xi=Ξ Pi=Π Sigma=Σ Upsilon=Υ Phi=Φ Psi=Ψ Omega=Ω infty=∞ partial=∂ nabla=∇ ell=ℓ hbar=ℏ
  emptyset=∅ varnothing=∅ top=⊤ bot=⊥ ldots=… dots=… cdots=⋯ vdots=⋮ ddots=⋱ angle=∠ triangle=△ square=□ degree=° prime=′
`);

/** Operators, relations and arrows. */
export const OPERATORS = pairs(`
  times=× div=÷ cdot=⋅ pm=± mp=∓ ast=∗ star=⋆ circ=∘ bullet=• oplus=⊕ ominus=⊖ otimes=⊗ odot=⊙ wedge=∧ vee=∨ land=∧ lor=∨ neg=¬
  lnot=¬ cap=∩ cup=∪ setminus=∖ dagger=† le=≤ leq=≤ ge=≥ geq=≥ ne=≠ neq=≠ equiv=≡ approx=≈ sim=∼ simeq=≃ cong=≅ propto=∝ ll=≪
  gg=≫ in=∈ notin=∉ ni=∋ subset=⊂ supset=⊃ subseteq=⊆ supseteq=⊇ mid=∣ parallel=∥ perp=⊥ models=⊨ vdash=⊢ forall=∀ exists=∃
  therefore=∴ because=∵ to=→ rightarrow=→ leftarrow=← gets=← leftrightarrow=↔ Rightarrow=⇒ Leftarrow=⇐ Leftrightarrow=⇔
  implies=⟹ iff=⟺ mapsto=↦ longrightarrow=⟶ uparrow=↑ downarrow=↓ colon=: coloneqq=≔ int=∫ iint=∬ iiint=∭ oint=∮
`);

/** Operators with limits below and above. */
export const LIMIT_OPERATORS = pairs(`
  sum=∑ prod=∏ bigcup=⋃ bigcap=⋂ bigoplus=⨁ bigotimes=⨂ bigvee=⋁ bigwedge=⋀ lim=lim limsup=limsup liminf=liminf max=max min=min
  sup=sup inf=inf argmax=argmax argmin=argmin det=det gcd=gcd Pr=Pr
`);

/** Functions written upright. */
export const FUNCTIONS = new Set(
  "sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan exp log ln lg arg deg dim hom ker".split(" "),
);

export const FENCES = pairs(
  "lbrace={ rbrace=} {={ }=} |=‖ langle=⟨ rangle=⟩ vert=| lvert=| rvert=| Vert=‖ lVert=‖ rVert=‖ lfloor=⌊ rfloor=⌋ lceil=⌈ rceil=⌉",
);

/** Marks above and below what follows. */
export const ACCENTS = pairs(
  "hat=^ widehat=^ bar=¯ overline=¯ vec=→ dot=˙ ddot=¨ tilde=~ widetilde=~ check=ˇ overrightarrow=→ overbrace=⏞",
);
export const ACCENTS_BELOW = pairs("underline=_ underbrace=⏟");

/** Blanks, in em. */
export const SPACES = pairs(",=0.17 :=0.22 >=0.22 ;=0.28 !=-0.17 quad=1 qquad=2 enspace=0.5").set(" ", "0.25");

/** Alphabets: where their A, a and 0 are in Unicode, and the letters that are elsewhere. */
export const ALPHABETS = new Map(
  Object.entries({
    mathbf: [0x1d400, 0x1d41a, 0x1d7ce, ""],
    boldsymbol: [0x1d468, 0x1d482, 0x1d7ce, ""],
    mathbb: [0x1d538, 0x1d552, 0x1d7d8, "Cℂ Hℍ Nℕ Pℙ Qℚ Rℝ Zℤ"],
    mathcal: [0x1d49c, 0x1d4b6, 0, "Bℬ Eℰ Fℱ Hℋ Iℐ Lℒ Mℳ Rℛ eℯ gℊ oℴ"],
    mathfrak: [0x1d504, 0x1d51e, 0, "Cℭ Hℌ Iℑ Rℜ Zℨ"],
  }),
);

/** Environments of rows and columns: the brackets around them, and how columns are set. */
export const ENVIRONMENTS = new Map([
  ...["matrix", "array", "gathered", "equation"].map((name) => [name, ["", "", ""]]),
  ...["aligned", "align", "split"].map((name) => [name, ["", "", "aligned"]]),
  ["cases", ["{", "", "cases"]],
  ["pmatrix", ["(", ")", ""]],
  ["bmatrix", ["[", "]", ""]],
  ["vmatrix", ["|", "|", ""]],
  ["Vmatrix", ["‖", "‖", ""]],
]);
